"""``mrmfast compare``: methods x seeds pre-trained under the same settings, evaluated, and put into one table."""
