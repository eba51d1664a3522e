{{ pending_model('fitbit_takeout', 'records') }}
