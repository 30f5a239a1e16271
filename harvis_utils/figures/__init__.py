"""Tables and arrays turned into figures and pages; nothing is computed here."""
