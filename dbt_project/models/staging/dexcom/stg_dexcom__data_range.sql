{{ pending_model('dexcom', 'data_range') }}
