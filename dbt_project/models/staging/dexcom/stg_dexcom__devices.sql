{{ pending_model('dexcom', 'devices') }}
