{{ pending_model('garmin', 'body_comps') }}
