{{ pending_model('dexcom', 'events') }}
