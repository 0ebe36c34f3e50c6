"""Where inputs come from: one file for each scheme of a URI."""
