"""What a postback would do, tried on a throw-away copy."""
