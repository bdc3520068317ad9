"""quantry in other tools: MLflow, Airflow. Each module needs its tool installed; nothing else imports them."""
