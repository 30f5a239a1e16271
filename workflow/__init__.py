"""What serves publishing and other machines; the package never imports it."""
