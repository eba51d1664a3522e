{{ export_readings('health_connect') }}
