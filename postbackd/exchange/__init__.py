"""Daily exchange rates: fetched, checked for plausibility, stored."""
