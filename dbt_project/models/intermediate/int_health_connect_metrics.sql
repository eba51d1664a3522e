{{ export_metrics('health_connect') }}
