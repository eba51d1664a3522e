{{ export_sleep_sessions('garmin_connect') }}
