"""config.ini.php: read as PHP reads it, watched, edited."""
