{{ pending_model('garmin', 'health_snapshot_measure') }}
