{{ export_sleep_sessions('health_connect') }}
