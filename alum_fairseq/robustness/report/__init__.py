"""From the records of a run to what is read: numbers, pictures, pages."""
