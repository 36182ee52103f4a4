"""From usage to money: rates, charges, and who pays which part."""
