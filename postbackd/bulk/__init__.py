"""Files of clicks, conversions and reports: imported, or compared."""
