"""placeholder"""
def page(record): return {}
