{{ pending_model('garmin', 'health_snapshots') }}
