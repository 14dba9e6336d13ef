"""`postback explain`: a postback tried on a throw-away copy of the database."""
