{{ export_sleep_sessions('health_auto_export') }}
