{{ pending_model('garmin', 'skin_temp') }}
