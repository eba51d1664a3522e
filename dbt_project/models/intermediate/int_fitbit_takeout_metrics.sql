{{ export_metrics('fitbit_takeout') }}
