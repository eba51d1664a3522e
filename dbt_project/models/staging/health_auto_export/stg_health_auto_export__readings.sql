{{ export_readings('health_auto_export') }}
