{{ pending_model('dexcom', 'alerts') }}
