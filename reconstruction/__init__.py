"""From a scan to its images: preparation, optimization unit, calibration of the priors, error map."""
