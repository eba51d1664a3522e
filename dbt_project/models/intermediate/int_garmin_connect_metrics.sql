{{ export_metrics('garmin_connect') }}
