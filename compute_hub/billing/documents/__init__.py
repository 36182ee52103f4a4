"""Invoices as people file them: PDF and Excel, in Chinese and English, from the same figures."""
