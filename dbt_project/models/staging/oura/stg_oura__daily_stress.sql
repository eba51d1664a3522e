{{ pending_model('oura', 'daily_stress') }}
