{{ pending_model('garmin', 'dailies') }}
