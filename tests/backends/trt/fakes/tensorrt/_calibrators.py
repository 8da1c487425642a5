"""Calibrator base classes: nothing but the constructor that has to be called."""

from tensorrt._enums import CalibrationAlgoType


class IInt8Calibrator:
    def __init__(self):
        self._ready = True


class IInt8EntropyCalibrator(IInt8Calibrator):
    def get_algorithm(self):
        return CalibrationAlgoType.ENTROPY_CALIBRATION


class IInt8EntropyCalibrator2(IInt8Calibrator):
    def get_algorithm(self):
        return CalibrationAlgoType.ENTROPY_CALIBRATION_2


class IInt8MinMaxCalibrator(IInt8Calibrator):
    def get_algorithm(self):
        return CalibrationAlgoType.MINMAX_CALIBRATION


class IInt8LegacyCalibrator(IInt8Calibrator):
    def get_algorithm(self):
        return CalibrationAlgoType.LEGACY_CALIBRATION


__all__ = [
    "IInt8Calibrator",
    "IInt8EntropyCalibrator",
    "IInt8EntropyCalibrator2",
    "IInt8LegacyCalibrator",
    "IInt8MinMaxCalibrator",
]
