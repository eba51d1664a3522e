{{ pending_model('oura', 'vo2_max') }}
