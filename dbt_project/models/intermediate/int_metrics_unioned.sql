{{ metrics_unioned() }}
