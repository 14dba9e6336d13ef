"""Daily exchange rates: fetched, doubted, stored."""
