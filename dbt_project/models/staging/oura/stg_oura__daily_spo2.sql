{{ pending_model('oura', 'daily_spo2') }}
