{{ export_metrics('health_auto_export') }}
