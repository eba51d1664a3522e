{#- The vendor's sports by number; those that are not here keep it. -#}
{%- set sports = {
    1: 'walking', 2: 'running', 3: 'hiking', 4: 'skating', 5: 'bmx', 6: 'cycling', 7: 'swimming', 8: 'surfing',
    9: 'kitesurfing', 10: 'windsurfing', 11: 'bodyboard', 12: 'tennis', 13: 'table_tennis', 14: 'squash',
    15: 'badminton', 16: 'strength_training', 17: 'fitness', 18: 'elliptical', 19: 'pilates', 20: 'basketball',
    21: 'soccer', 22: 'football', 23: 'rugby', 24: 'volleyball', 25: 'water_polo', 26: 'horse_riding', 27: 'golf',
    28: 'yoga', 29: 'dancing', 30: 'boxing', 31: 'fencing', 32: 'wrestling', 33: 'martial_arts', 34: 'skiing',
    35: 'snowboarding', 36: 'other', 128: 'no_activity', 187: 'rowing', 188: 'zumba', 191: 'baseball',
    192: 'handball', 193: 'hockey', 194: 'ice_hockey', 195: 'climbing', 196: 'ice_skating', 272: 'multi_sport',
    306: 'indoor_walking', 307: 'indoor_running', 308: 'indoor_cycling', 455: 'paddleboarding', 456: 'padel',
    491: 'stair_stepper', 494: 'kayaking', 495: 'canoeing', 496: 'sailing', 498: 'trail_running',
    499: 'snowshoeing', 510: 'pickleball', 521: 'triathlon', 523: 'mountain_biking', 524: 'gravel_biking',
    525: 'e_biking', 529: 'backcountry_skiing', 530: 'nordic_skiing', 546: 'crossfit', 547: 'spinning',
    550: 'hiit', 551: 'meditation', 552: 'stretching', 560: 'breathing', 566: 'nordic_walking',
} -%}
with workouts as (
    select
        *,
        coalesce(utc_offset_minutes, {{ zone_offset_minutes('started_at', 'home_time_zone') }}, 0)::smallint
            as said_offset_minutes
    from {{ ref('stg_withings__workout') }}
)

select
    user_id,
    source,
    id::text as source_record_id,
    started_at,
    ended_at,
    said_offset_minutes as utc_offset_minutes,
    coalesce(date, {{ local_day('started_at', 'said_offset_minutes') }}) as local_date,
    case category
        {% for number, name in sports.items() -%}
        when {{ number }} then '{{ name }}'
        {% endfor -%}
        else 'sport_' || category
    end as activity,
    null::text as intensity,
    extract(epoch from ended_at - started_at)::integer as duration_seconds,
    -- What was typed in stands where nothing was measured.
    coalesce(nullif(calories_kcal, 0), nullif(manual_calories_kcal, 0)) as calories_kcal,
    coalesce(nullif(distance_m, 0), nullif(manual_distance_m, 0)) as distance_m,
    hr_average_bpm as average_heart_rate_bpm,
    hr_max_bpm as max_heart_rate_bpm,
    null::double precision as elevation_gain_m,
    null::double precision as perceived_exertion,
    false as is_deleted,
    raw_object_id,
    received_at
from workouts
