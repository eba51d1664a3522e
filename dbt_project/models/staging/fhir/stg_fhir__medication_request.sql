{{ pending_model('fhir', 'medication_request') }}
