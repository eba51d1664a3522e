{{ pending_model('garmin', 'epochs') }}
