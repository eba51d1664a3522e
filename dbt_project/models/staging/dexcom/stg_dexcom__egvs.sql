{{ pending_model('dexcom', 'egvs') }}
