"""Programs that show what zrpc does. Not part of the installed package."""
