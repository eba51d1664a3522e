{{ pending_model('garmin', 'activity_details') }}
