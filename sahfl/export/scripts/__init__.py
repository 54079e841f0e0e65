"""The scripts that an export carries. They import nothing of sahfl but each other, and run where sahfl is absent."""
