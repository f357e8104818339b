"""Replace the code of modules that cannot follow new widths by the operators that they ran."""
