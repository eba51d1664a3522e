{{ export_sleep_sessions('fitbit_takeout') }}
