{{ pending_model('dexcom_clarity', 'meals') }}
