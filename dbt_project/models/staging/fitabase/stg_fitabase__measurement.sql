{{ pending_model('fitabase', 'measurement') }}
