"""Health Pipeline: people's health data from every vendor in one warehouse that can be trusted."""
