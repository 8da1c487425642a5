"""The whole way, from sentences to a record: the only room that knows every stage."""
