{{ metrics_validated() }}
