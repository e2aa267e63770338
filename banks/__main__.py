"""`python -m banks SETTINGS.json`."""

from banks.serve import main

main()
